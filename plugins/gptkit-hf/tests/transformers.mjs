// What transformers.js makes of folders: the ids of a text, and greedy tokens after it.
// Usage: node transformers.mjs FOLDER TEXT COUNT

import path from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, text, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype: "fp32", device: "cpu" });
const inputs = await tokenizer(text);
const drawn = await model.generate({
  ...inputs,
  max_new_tokens: Number(count),
  do_sample: false,
  eos_token_id: null,
});
const numbers = (tensor) => Array.from(tensor.data, Number);
console.log(JSON.stringify({ ids: numbers(inputs.input_ids), drawn: numbers(drawn) }));
