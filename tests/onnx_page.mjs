// Drives the page of an exported model in headless Chromium, for test_onnx_web.py.
// Arguments: the browser, the proxy that sees every request which leaves localhost, the page, and
// what to do there as JSON, a list of {action: [...]}. Prints what was found as JSON.
import puppeteer from "puppeteer-core";

const [executablePath, proxy, url, actions] = process.argv.slice(-4);
const browser = await puppeteer.launch({
  executablePath,
  headless: "shell",
  args: ["--no-sandbox", "--disable-gpu", `--proxy-server=${proxy}`],
});
const page = await browser.newPage();
await page.setViewport({ width: 800, height: 900 });
const found = { errors: [], results: [] };
page.on("pageerror", (error) => found.errors.push(error.message));
const idle = () => page.waitForFunction(() => !document.body.classList.contains("busy"));

const known = {
  async set(id, value) {
    await page.$eval(`#${id}`, (field, text) => { field.value = text; }, value);
  },
  async write() {
    await page.click("#write");
    await idle();
    return page.evaluate(() => ({
      text: document.getElementById("text").textContent,
      message: document.getElementById("message").textContent,
      status: document.getElementById("status").textContent,
      command: document.querySelector("#same code")?.textContent,
      options: [...document.querySelectorAll("#same span")].map((option) => option.textContent),
      shown: !document.getElementById("result").hidden,
      pictures: [...document.querySelectorAll("canvas")].map((canvas) => Array.from(
        canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)),
    }));
  },
  async stop() { // after the first tokens
    await page.click("#write");
    await page.waitForFunction(() => document.getElementById("drawn").textContent);
    await page.click("#stop");
    await idle();
    return page.$eval("#drawn", (drawn) => drawn.textContent.length);
  },
  generate: (request) => page.evaluate((asked) => window.gptkit.generate(asked), request),
  encode: (texts) => page.evaluate((all) => all.map(window.gptkit.encode), texts),
  fetch: (address) => page.evaluate((to) => fetch(to).then(() => "", () => "failed"), address),
  inject: (address) => page.evaluate((from) => new Promise((resolve) => {
    const script = document.createElement("script");
    script.onload = () => resolve("loaded");
    script.onerror = () => resolve("failed");
    script.src = from;
    document.head.append(script);
  }), address),
  screenshot: (path) => page.screenshot({ path, fullPage: true }).then(() => null),
};

try {
  await page.goto(url);
  await page.evaluate(() => window.gptkit.ready.catch(() => null));
  found.title = await page.$eval("#title", (title) => title.textContent);
  found.facts = await page.$eval("#facts", (facts) => facts.textContent);
  found.message = await page.$eval("#message", (message) => message.textContent);
  for (const [name, ...given] of JSON.parse(actions)) {
    found.results.push(await known[name](...given) ?? null);
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(found));
