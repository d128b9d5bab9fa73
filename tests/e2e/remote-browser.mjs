/* A browser for tests that are not JavaScript: one JSON command a line on standard input, one JSON answer a line on
 * standard output, {"ok": value} or {"error": words}. It lives until its input ends.
 *
 *   {"do":"goto","url"}   {"do":"eval","code"}   {"do":"wait","code","timeout_s"}   {"do":"click","selector"}
 *   {"do":"fill","selector","text"}   {"do":"press","key"}   {"do":"size","width","height"}
 *   {"do":"close"}: this page; what is done to it next is done to a new one
 *   {"do":"shot","path","dark"}   {"do":"axe"}   {"do":"errors"}: of the console and the policy, since the last time
 */

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import readline from 'node:readline';
import { launch } from './browser.mjs';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await launch();
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
const errors = [];
const pages = new Map(); // by the name that a command may have: "page"

context.on('page', (page) => {
  page.on('console', (message) => { if (message.type() === 'error') errors.push(message.text()); });
  page.on('pageerror', (error) => errors.push(String(error)));
});
await context.addInitScript(() => {
  document.addEventListener('securitypolicyviolation', (event) => {
    console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
  });
});

async function pageOf(name) {
  if (!pages.has(name)) pages.set(name, await context.newPage());
  return pages.get(name);
}

const commands = {
  goto: (page, { url }) => page.goto(url).then(() => null),
  eval: (page, { code }) => page.evaluate(code),
  close: (page, { page: name = '' }) => {
    pages.delete(name);
    return page.close();
  },
  wait: async (page, { code, timeout_s: seconds = 30 }) => { // not waitForFunction(): it would need eval() in the page
    for (const end = Date.now() + seconds * 1000; !await page.evaluate(code);) {
      if (Date.now() > end) throw new Error(`not within ${seconds} s`);
      await new Promise((resolve) => { setTimeout(resolve, 50); });
    }
  },
  click: (page, { selector }) => page.locator(selector).click(),
  fill: (page, { selector, text }) => page.locator(selector).fill(text),
  press: (page, { key }) => page.keyboard.press(key),
  size: (page, { width, height }) => page.setViewportSize({ width, height }),
  errors: async () => errors.splice(0),
  async shot(page, { path, dark = false }) {
    await page.emulateMedia({ colorScheme: dark ? 'dark' : 'light' });
    await page.screenshot({ path, fullPage: true });
    await page.emulateMedia({ colorScheme: 'light' });
  },
  async axe(page) {
    const found = [];
    for (const colorScheme of ['dark', 'light']) {
      await page.emulateMedia({ colorScheme });
      await page.evaluate(AXE);
      found.push(...await page.evaluate(async () => (await globalThis.axe.run()).violations
        .flatMap((one) => one.nodes.map((node) => `${one.id}: ${node.target} ${node.failureSummary}`))));
    }
    return found;
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const answer = await pageOf(command.page ?? '').then((page) => commands[command.do](page, command))
    .then((ok) => ({ ok: ok ?? null }), (error) => ({ error: String(error.message) }));
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
