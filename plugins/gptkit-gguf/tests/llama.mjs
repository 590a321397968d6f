// What llama.cpp makes of GGUF files. Reads requests as JSON: [{file, texts, ids, count}].
// Prints for each its tokens of the texts, and `count` greedy tokens that follow `ids`.
import {getLlama} from "node-llama-cpp";

const requests = JSON.parse(process.argv.at(-1));
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: "error"});
const found = [];
for (const {file, texts = [], ids = [], count = 0} of requests) {
  try {
    const model = await llama.loadModel({modelPath: file});
    const tokens = texts.map((text) => Array.from(model.tokenize(text, false)));
    const shown = texts.map((_, i) => model.detokenize(tokens[i]));
    const greedy = [];
    if (count > 0) {
      const size = ids.length + count;
      const context = await model.createContext({contextSize: size, batchSize: size, threads: 1});
      const sequence = context.getSequence();
      const options = {temperature: 0, yieldEogToken: true};
      for await (const token of sequence.evaluate(ids, options)) {
        greedy.push(token);
        if (greedy.length >= count) break;
      }
      await context.dispose();
    }
    const {bos, eos, shouldPrependBosToken} = model.tokens;
    const template = model.fileInfo.metadata.tokenizer.chat_template ?? null;
    found.push({tokens, shown, greedy, bos, eos, prepends: shouldPrependBosToken, template,
                trained: model.trainContextSize});
    await model.dispose();
  } catch (error) {
    found.push({error: String(error)});
  }
}
console.log(JSON.stringify(found));
process.exit(0);
