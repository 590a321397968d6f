// Prints the seconds in which llama.cpp draws `count` greedy tokens after `ids`, loading left out.
import {getLlama} from "node-llama-cpp";

const {file, ids, count, threads} = JSON.parse(process.argv.at(-1));
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: ids.length + count + 1, threads});
const begin = performance.now();
let drawn = 0;
for await (const _ of context.getSequence().evaluate(ids, {temperature: 0, yieldEogToken: true})) {
  if (++drawn >= count) break;
}
console.log((performance.now() - begin) / 1000);
process.exit(drawn < count ? 1 : 0);
