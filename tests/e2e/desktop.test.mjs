/* desktop.mjs must be able to fail: a mock's desktops that answer, and that do not. */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { MockDaemon } from './mock-daemon.mjs';

const OUT = path.resolve(process.env.MC_E2E_OUT || fileURLToPath(new URL('../../build/e2e', import.meta.url)));

describe('desktop.mjs on', { concurrency: 2 }, () => {
  const program = fileURLToPath(new URL('desktop.mjs', import.meta.url));
  const cases = [
    ['a desktop that answers', {}, 0, { ok: true, width: 800, height: 600, changed: true, blocked: [] }, null],
    ['a desktop that is frozen', { rfb: { frozen: true } }, 1, { ok: false, changed: false }, /changed the picture 0 times/],
    ['a desktop that stays black', { rfb: { black: true } }, 1, { ok: false, colours: 1 }, /no picture in time: 800x600, 1 c/],
    ['a desktop that cannot be reached', { close: [1014, 'Port 6080 is closed.'] }, 1, { ok: false, connect_ms: null },
      /no desktop in time: state reconnecting: .*Port 6080 is closed\./],
    ['a desktop that has ended', { close: [4408, 'Time is over.'] }, 1, { ok: false }, /no desktop: state ended: .*Time is over\./],
  ];
  for (const [name, desktop, status, expected, reason] of cases)
    test(name, async () => {
      const daemon = await MockDaemon.start();
      daemon.vm.state = 'running';
      if (Object.keys(desktop).length) daemon.desktop = desktop;
      const out = path.join(OUT, name.replaceAll(' ', '-'));
      try {
        const ended = await run(process.execPath, [program, '--url', daemon.pageUrl('#ticket=good-ticket'), '--out', out,
          '--timeout-s', status ? '12' : '60', '--input-timeout-s', status ? '3' : '30']);
        assert.equal(ended.status, status, ended.stderr);
        const result = JSON.parse(ended.stdout);
        for (const [key, value] of Object.entries(expected)) assert.deepEqual(result[key], value, key);
        if (reason) assert.match(result.reason, reason);
        assert.ok(existsSync(path.join(out, status ? 'failed.png' : 'after.png')));
        assert.doesNotMatch(ended.stdout + ended.stderr, /good-ticket/);
      } finally {
        await daemon.stop();
      }
    });
});

function run(command, args) {
  return new Promise((resolve) => {
    execFile(command, args, (error, stdout, stderr) => resolve({ status: error?.code ?? 0, stdout, stderr }));
  });
}
