/* A user's eyes and hands at a session's desktop: headless Chromium on the page, which sees the desktop as noVNC draws it,
 * and uses its mouse and keyboard. What to do comes on standard input, a JSON line each:
 *
 *   {"click":"go"}   waits until that colour is seen and rests, then clicks its middle
 *   {"fill":"login","text":"anna"}   types into the field of that colour until it has it: keys are lost in a slow desktop
 *   {"see":"done"}  {"shot":"name"}  {"words":true}
 *   {"state":"asleep"}   waits until the page itself is in that state     {"button":"Wake it up"}   of the page itself
 *
 * and for each a JSON line is the answer: {"ok":true} or {"ok":false,"reason"}. Exit status 2: usage.
 *
 *   node login.mjs --url 'http://…/novnc#ticket=…' --out DIR [--timeout-s 300]
 */

import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { launch } from './browser.mjs';

/* Of provider.mjs's pages. */
const COLOURS = {
  login: [0xff, 0xd0, 0x40], 'login-ok': [0xff, 0x80, 0x00], password: [0x40, 0xd0, 0xff], 'password-ok': [0x40, 0x40, 0xff],
  go: [0x10, 0xa0, 0x10],
  allow: [0x00, 0x60, 0xd0], confirm: [0xa0, 0x60, 0x10], no: [0xd0, 0x10, 0x10], done: [0x80, 0x20, 0xc0],
};
const MIN_PIXELS = 5000;
const STEP_MS = 300;
const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

const { values: given } = parseArgs({
  options: { url: { type: 'string' }, out: { type: 'string' }, 'timeout-s': { type: 'string', default: '300' } },
});
if (!given.url || !given.out) process.exit(2);
const timeoutMs = Number(given['timeout-s']) * 1000;
mkdirSync(given.out, { recursive: true });
const browser = await launch();
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
await page.goto(given.url, { waitUntil: 'domcontentloaded', timeout: timeoutMs });

/* The middle of what has that colour on the desktop (a picture in transit may be a little off), in the page's pixels. */
async function find(colour) {
  const seen = await page.evaluate(([[red, green, blue]]) => {
    const canvas = document.querySelector('#desktop canvas');
    if (!canvas?.width || !canvas.height) return { count: 0 };
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let count = 0, x = 0, y = 0;
    for (let i = 0; i < data.length; i += 4)
      if (Math.abs(data[i] - red) < 20 && Math.abs(data[i + 1] - green) < 20 && Math.abs(data[i + 2] - blue) < 20) {
        count++;
        x += (i / 4) % canvas.width;
        y += Math.floor(i / 4 / canvas.width);
      }
    return { count, x: x / count / canvas.width, y: y / count / canvas.height };
  }, [COLOURS[colour]]);
  if (seen.count < MIN_PIXELS) return null;
  const box = await page.locator('#desktop canvas').boundingBox();
  return { count: seen.count, x: Math.round(box.x + seen.x * box.width), y: Math.round(box.y + seen.y * box.height) };
}

const state = () => page.evaluate(() => document.documentElement.dataset.state);
const words = () => page.evaluate(() => document.body.innerText.replace(/\s+/g, ' ').trim().slice(0, 400));

/* Seen twice at the same place: the page is drawn. */
async function see(colour) {
  let last = null;
  for (const end = performance.now() + timeoutMs; performance.now() < end; await sleep(STEP_MS)) {
    const now = await find(colour);
    if (now && last && now.x === last.x && now.y === last.y && now.count === last.count) return now;
    last = now;
  }
  throw new Error(`${colour} is not seen: ${await words()}`);
}

/* As a person does who looks at what came of it. */
async function fill(field, text) {
  for (let attempt = 0; attempt < 8; attempt++) {
    const { x, y } = await see(field);
    await page.mouse.click(x, y);
    await sleep(1500);
    await page.keyboard.press('Control+a');
    await page.keyboard.type(text, { delay: 250 });
    for (let waited = 0; waited < 20000; waited += STEP_MS) {
      if (await find(`${field}-ok`)) return;
      await sleep(STEP_MS);
    }
  }
  throw new Error(`${field} does not take what is typed: ${await words()}`);
}

async function act(what) {
  if (what.click) {
    const { x, y } = await see(what.click);
    await page.mouse.click(x, y);
  } else if (what.see) {
    await see(what.see);
  } else if (what.fill) {
    await fill(what.fill, what.text);
  } else if (what.button) {
    await page.getByRole('button', { name: what.button }).click();
  } else if (what.state) {
    for (const end = performance.now() + timeoutMs; await state() !== what.state; await sleep(STEP_MS))
      if (performance.now() > end) throw new Error(`the page is ${await state()}: ${await words()}`);
  } else if (what.shot) {
    await page.screenshot({ path: path.join(given.out, `${what.shot}.png`) });
  }
  return what.words ? { ok: true, words: await words() } : { ok: true };
}

/* Who gives the orders has gone: nothing is waited for any more. */
const orders = createInterface({ input: process.stdin });
orders.on('close', () => browser.close().finally(() => process.exit()));

for await (const line of orders) {
  const answer = await act(JSON.parse(line)).catch((error) => ({ ok: false, reason: error.message.split('\n')[0] }));
  if (!answer.ok) await page.screenshot({ path: path.join(given.out, 'failed.png') }).catch(() => {});
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
