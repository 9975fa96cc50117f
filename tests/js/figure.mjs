// A figure's module as the page gets it: with controls.js before it. As a
// data URL, since the file's name says nothing of its module type.
import { readFile } from "node:fs/promises";

const folder = new URL("../../normlab/explore/", import.meta.url);
const read = (name) => readFile(new URL(`${name}.js`, folder), "utf8");

export async function load(name) {
  const text = (await read("controls")) +
    (name === "controls" ? "" : await read(name));
  const data = Buffer.from(text).toString("base64");
  return import(`data:text/javascript;base64,${data}`);
}
