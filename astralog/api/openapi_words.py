"""What the API's description says in words and examples."""

ABOUT = """\
A log collector that answers 200 when every line is on disk.

On the service's own machine, with the token of its first start:

```
curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -d '{"logs": [{"project_id": "org-xyz", "timestamp": "2024-05-31T15:30:45Z",
       "level": "info", "service": "api-gateway", "message": "User logged in",
       "metadata": {"user_id": 123, "ip": "1.1.1.1"}}]}'
```

To try it on this page, put the token under *Authorize*. Send 100 to 500 logs per batch over several
connections, and give up after 10 seconds. This page is made of [openapi.json](openapi.json).
"""

DRAIN = """\
Every log of the batch is stored, or none: 200 means that all of them are written and synced.

A body may be compressed, as its Content-Encoding says: {codings}.

```
gzip -c batch.json | curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H "Content-Encoding: gzip" --data-binary @-
```

A sender that cannot write these fields asks for them in the query:

```
curl -s "http://localhost:8080/v1/drain?project_id=org-xyz&level=info&unknown=metadata" \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -d '{{"logs": [{{"timestamp": "2024-05-31", "service": "shell", "message": "", "pid": 7}}]}}'
```

A batch with a key is stored once, however often it is sent: give each batch a new one, and send it
again with the same one until the answer is 200.

```
curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H 'Idempotency-Key: "9b2f6c1e-0b7a-4f43-8d55-0d6f1f3f7a10"' --data-binary @batch.json
```

A body of one log a line is told by its Content-Type:

```
curl -s http://localhost:8080/v1/drain \\
  -H "Authorization: Bearer $(cat data/token)" \\
  -H "Content-Type: application/x-ndjson" --data-binary @app.ndjson
```
"""

EXAMPLE = {
    "logs": [
        {
            "project_id": "org-xyz",
            "timestamp": "2024-05-31T15:30:45Z",
            "level": "info",
            "service": "api-gateway",
            "message": "User logged in",
            "metadata": {"user_id": 123, "ip": "1.1.1.1"},
        }
    ]
}

NDJSON_EXAMPLE = """\
{"project_id":"org-xyz","timestamp":"2024-05-31T15:30:45Z","level":"info","service":"api-gateway","message":"User logged in"}
{"project_id":"org-xyz","timestamp":"2024-05-31T15:30:46Z","level":"info","service":"api-gateway","message":"User logged out"}
"""  # noqa: E501

_ERRORS = {"logs": {"3": {"level": ["Must not be empty."]}}}

PARTIAL_BATCH = {"status": "accepted", "rejected": 1, "errors": _ERRORS}

REJECTED_BATCH = {
    "status": "rejected",
    "code": "invalid_batch",
    "message": "1 of 500 logs are invalid; nothing was stored",
    "errors": _ERRORS,
}
