// The gateway's page in headless Chromium: asked by keyboard, streamed, /why opened, stopped with
// Esc, marked private; two pictures. Not part of scripts/test: Chromium is 70 MB.
//
//   npm i --prefix DIR @sparticuz/chromium puppeteer-core
//   NODE_PATH=DIR/node_modules node scripts/check_page.mjs "ADDRESS#TOKEN" PICTURES [--cloud]
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const found = createRequire(`${process.env.NODE_PATH}/`);
const { default: chromium } = await import(found.resolve("@sparticuz/chromium"));
const { default: puppeteer } = await import(found.resolve("puppeteer-core"));
const [address, pictures, cloud] = process.argv.slice(2);
const origin = new URL(address).origin;
const browser = await puppeteer.launch({
  args: [...chromium.args, "--no-sandbox"],
  executablePath: await chromium.executablePath(),
  headless: "shell",
});
try {
  const page = await browser.newPage();
  const elsewhere = [], complaints = [];
  page.on("request", one => {
    if (!one.url().startsWith(`${origin}/`)) elsewhere.push(one.url());
  });
  page.on("console", one => { if (one.type() === "error") complaints.push(one.text()); });
  page.on("pageerror", error => complaints.push(String(error)));
  await page.setViewport({ width: 1280, height: 800 });

  await page.goto(`${origin}/`);
  await page.waitForSelector("#key:not([hidden])");
  complaints.length = 0;  // a browser complains of every 401
  await page.goto(address);
  await page.waitForFunction(() => document.querySelectorAll("#workers li").length === 5);
  assert.equal(page.url(), `${origin}/`);
  assert.ok(await page.$("#key[hidden]"));
  console.log("without a token: asked for one; with it: gone from the address");

  const answers = () => page.$$eval("article .text", all => all.map(one => one.textContent));
  const ended = count => page.waitForFunction(
    n => document.querySelectorAll("article[aria-busy=false]").length === n, {}, count);
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  await page.keyboard.type("Why is the sky blue? One sentence.");
  const seen = new Set();
  await page.exposeFunction("saw", length => seen.add(length));
  await page.evaluate(() => new MutationObserver(() => {
    const last = [...document.querySelectorAll("article .text")].at(-1);
    if (last) saw(last.textContent.length);
  }).observe(document.getElementById("talk"), { subtree: true, childList: true }));
  await page.keyboard.press("Enter");
  await ended(1);
  assert.ok(seen.size > 3, "it was streamed");
  console.log(`streamed: seen at ${seen.size} lengths: ${(await answers())[0].slice(0, 60)}`);

  await page.focus("article summary");
  const outline = await page.$eval("article summary", one => getComputedStyle(one).outlineStyle);
  assert.notEqual(outline, "none");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => /^(Answered|Waited)/.test(
    document.querySelector("article details pre").textContent));
  console.log(await page.$eval(".who", one => one.textContent));
  console.log(await page.$eval("article details pre", one => one.textContent));

  let count = 1;
  if (cloud) {
    await page.select("#model", "cloud");
    await page.type("#question", "And at dusk?\n");
    await ended(count += 1);
    console.log(await page.$$eval(".who", all => all.at(-1).textContent));
    await page.waitForFunction(() => document.querySelectorAll("#sent li").length > 0);
    await page.select("#model", "auto");
  }
  await page.screenshot({ path: `${pictures}/page-wide.png` });
  await page.setViewport({ width: 390, height: 780 });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 390));
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await page.screenshot({ path: `${pictures}/page-phone.png` });
  await page.focus("#menu");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#workers", { visible: true });
  await page.screenshot({ path: `${pictures}/page-phone-status.png` });
  await page.keyboard.press("Enter");

  await page.click("#private");
  await page.type("#question", "<img src=x onerror=alert(1)> is what?\n");
  await ended(count += 1);
  assert.match(await page.$$eval(".who", all => all.at(-1).textContent), /private: as you said/);
  assert.equal(await page.$("#talk img"), null);
  console.log(await page.$$eval(".who", all => all.at(-1).textContent));

  await page.type("#question", "Count from one to one thousand.\n");
  await page.waitForFunction(() => {
    const last = [...document.querySelectorAll("article .text")].at(-1);
    return last.textContent.length > 3;
  });
  await page.keyboard.press("Escape");
  await ended(count += 1);
  assert.equal(await page.$$eval(".bad", all => all.at(-1).textContent), "Stopped.");
  const last = "article:last-child details";
  await page.click(`${last} summary`);
  await page.waitForFunction(at => document.querySelector(at).textContent.includes(
    "You cancelled it."), {}, last);
  console.log("Esc stopped it");
  assert.deepEqual([elsewhere, complaints], [[], []]);
  console.log("no request to anywhere else, no complaint of the browser's");
} finally {
  await browser.close();
}
