// JSON as a tree, with every digit of its numbers: JSON.parse would change long ones.

import { make, many, show, showName, showStart } from "./format.js";

/** Members shown at once, and members of an inner object that is open at first. */
const SHOWN = 100;
const OPEN = 20;

/** Levels of nested objects that are open at first, and that are indented. */
const OPEN_DEPTH = 2;
const INDENTED_DEPTH = 12;

const BLANK = ", :\t\r\n";

/** The end of the string that starts at an index. */
function endOfString(text, start) {
  for (let at = start; ; ) {
    at = text.indexOf('"', at + 1);
    if (at < 0) throw new SyntaxError("a string has no end");
    let escapes = 0;
    while (text[at - 1 - escapes] === "\\") escapes += 1;
    if (escapes % 2 === 0) return at + 1;
  }
}

function endOfWord(text, start) {
  const word = /[^\s,:{}[\]"]+/y;
  word.lastIndex = start;
  if (!word.test(text)) throw new SyntaxError("not JSON");
  return word.lastIndex;
}

/**
 * Read JSON: a node has its `name` in an object, and either the `text` of its value or its
 * `members`, between `start` and `end`. Throws for most of what is not JSON.
 */
export function parse(text) {
  const root = { isList: true, members: [] };
  const open = [root];
  let name = null;
  for (let at = 0; at < text.length; ) {
    const [top, first] = [open.at(-1), text[at]];
    if (BLANK.includes(first)) {
      at += 1;
    } else if (first === "}" || first === "]") {
      open.pop();
      top.end = at += 1;
    } else if (first === "{" || first === "[") {
      const node = { name, isList: first === "[", members: [], start: at };
      name = null;
      top.members.push(node);
      open.push(node);
      at += 1;
    } else {
      const end = first === '"' ? endOfString(text, at) : endOfWord(text, at);
      const value = text.slice(at, end);
      if (!top.isList && name === null) name = JSON.parse(value);
      else {
        top.members.push({ name, text: value });
        name = null;
      }
      at = end;
    }
  }
  if (open.length !== 1 || root.members.length !== 1) throw new SyntaxError("not JSON");
  return root.members[0];
}

/** The value of a node for the filter `field`: a text, or JSON. */
const valueOf = (node) => (node.text[0] === '"' ? JSON.parse(node.text) : node.text);

/**
 * Create a list of a node's members; `only(path, value)` creates the button that filters by a
 * value, if there is a filter for it. The path has a dot for each object, and is null for values
 * without a path, in nested arrays.
 */
export function makeTree(node, only, path = "", depth = 0) {
  const list = make("ul", depth > INDENTED_DEPTH ? "tree flat" : "tree");
  const button = make("button", "quiet");
  const rest = make("li");
  let shown = 0;
  button.type = "button";
  rest.append(button);
  const showMore = () => {
    const next = node.members.slice(shown, shown + SHOWN);
    shown += next.length;
    rest.remove();
    list.append(...next.map((member) => makeItem(member, only, pathOf(member, path, node.isList), depth)));
    if (shown < node.members.length) list.append(rest);
    button.textContent = `${many(node.members.length - shown, "more value")}`;
  };
  button.addEventListener("click", showMore);
  showMore();
  return list;
}

function pathOf(member, path, isInList) {
  if (path === null) return null;
  if (isInList) return member.members && member.isList ? null : path;
  return path === "" ? member.name : `${path}.${member.name}`;
}

function makeItem(node, only, path, depth) {
  const item = make("li");
  const name = make("bdi", "name");
  if (node.name !== null) showName(name, node.name);
  if (!node.members?.length) {
    if (node.name !== null) item.append(name, ": ");
    const value = make("bdi");
    if (node.members) value.textContent = node.isList ? "[]" : "{}";
    else if (node.text[0] === '"') showStart(value, valueOf(node), "\n\t", '"');
    else showStart(value, node.text);
    item.append(value);
    const button = node.text && path && only(path, valueOf(node));
    if (button) item.append(" ", button);
    return item;
  }
  const details = make("details");
  const summary = make("summary");
  summary.append(name, make("span", "note", ` ${node.isList ? "[" : "{"}${node.members.length}${node.isList ? "]" : "}"}`));
  details.append(summary);
  const fill = () => details.children.length > 1 || details.append(makeTree(node, only, path, depth + 1));
  if (depth < OPEN_DEPTH && node.members.length <= OPEN) {
    details.open = true;
    fill();
  }
  details.addEventListener("toggle", () => details.open && fill());
  item.append(details);
  return item;
}
