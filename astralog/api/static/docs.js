"use strict";

async function show() {
  const answer = await fetch("openapi.json");
  const text = await answer.text();
  const docs = SwaggerUIBundle({
    dom_id: "#docs",
    // The curl lines have the address of this page.
    spec: JSON.parse(text.replaceAll("http://localhost:8080", location.origin)),
    validatorUrl: null,
    defaultModelsExpandDepth: 3,
    defaultModelExpandDepth: 3,
    displayRequestDuration: true,
    onComplete: () => docs.layoutActions.show(["operations", "Logs", "drain"], true),
  });
}

show();
