/* What the dashboard makes of what it is told (web/static/inventory.js), without a browser. */

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Inventory, MARKS, portView, sessionTone, vmTone, vmWords } from '../../web/static/inventory.js';

const vm = (n, more = {}) => ({
  id: `vm-0000000${n}-0000-4000-8000-000000000000`, user: `u${n}`, type: 'cli', state: 'running', reachable: true,
  finding: null, ip: `192.168.0.${n}`, tap: `fc-vm-0000000${n}0`, created_at: `2026-01-0${n}T00:00:00.000Z`, ...more,
});
const port = (n, more = {}) => ({
  name: `fc-vm-0000000${n}0`, kind: 'tun', number: n, vm_id: vm(n).id, up: true, carrier: true, forwards: true, problem: null,
  ...more,
});

describe('tones', () => {
  test('every state of a VM has one, and what cannot be reached is red', () => {
    const states = ['creating', 'booting', 'running', 'hibernating', 'hibernated', 'resuming', 'stopping', 'stopped',
      'failed', 'a state of the future'];
    for (const state of states) {
      assert.ok(MARKS[vmTone(vm(1, { state }))], state);
      assert.equal(vmTone(vm(1, { state, reachable: false })), 'bad');
      assert.equal(vmTone(vm(1, { state, finding: 'The TAP is down' })), 'bad');
    }
    assert.equal(vmTone(vm(1)), 'good');
    assert.equal(vmTone(vm(1, { state: 'failed' })), 'bad');
  });

  test('one of the pool waits for a user, and is not busy', () => {
    const spare = vm(1, { user: '(pool)', state: 'creating', reachable: null });
    assert.deepEqual([vmTone(spare), vmWords(spare)], ['done', 'in the pool']);
    assert.deepEqual([vmTone({ ...spare, user: 'u1' }), vmWords({ ...spare, user: 'u1' })], ['busy', 'creating']);
    assert.equal(vmWords({ ...spare, state: 'stopping' }), 'stopping');
  });

  test('every status of a session has one', () => {
    for (const status of ['started', 'vm_created', 'awaiting_user_auth', 'authenticating', 'completed', 'failed', 'timeout',
      'cancelled', 'new'])
      assert.ok(MARKS[sessionTone({ status })], status);
    assert.equal(sessionTone({ status: 'failed' }), 'bad');
  });
});

describe('a port', () => {
  test('is as red as its VM, or redder', () => {
    assert.equal(portView(port(1), vm(1)).tone, 'good');
    assert.equal(portView(port(1), vm(1, { reachable: false })).tone, 'bad');
    const down = portView(port(1, { problem: 'is down: nothing reaches the VM' }), vm(1));
    assert.equal(down.tone, 'bad');
    assert.match(down.words, /^Port 1, fc-vm-000000010: cli VM of u1, running\. It is down: nothing reaches the VM\.$/);
  });

  test('on no bridge, and not a VM\'s', () => {
    assert.match(portView(port(1, { number: null, problem: 'is gone' }), vm(1)).words, /^On no port, /);
    const other = portView({ name: 'eth7', kind: '', number: 3, vm_id: null, problem: null }, undefined);
    assert.equal(other.tone, 'done');
    assert.match(other.words, /Port 3, eth7: not a VM's \(hardware\)\./);
    assert.equal(portView(port(1, { problem: 'is left over' }), undefined).tone, 'bad');
  });

  test('hostile names lose what could mislead', () => {
    const view = portView(port(1, { name: '\x1b[31mevil\u202e' }), vm(1, { user: 'a\nb\u0000' }));
    assert.doesNotMatch(view.words + view.label, /[\p{Cc}\u202e]/u);
  });
});

describe('the inventory', () => {
  test('takes changes in, and keeps what has ended for a while', () => {
    const inventory = new Inventory();
    inventory.setVms([vm(1), vm(2)]);
    inventory.apply({ about: vm(3).id, vm: vm(3, { state: 'booting' }) });
    inventory.apply({ about: vm(3).id, vm: vm(3) });
    assert.equal(inventory.vms.size, 3);
    inventory.apply({ about: vm(1).id, vm: vm(1, { state: 'stopped' }) });
    inventory.apply({ about: vm(1).id, vm: vm(1, { state: 'stopped' }) }); // and told once more
    assert.equal(inventory.vms.size, 2);
    assert.deepEqual(inventory.vmRows().map(({ id }) => id), [vm(3).id, vm(2).id, vm(1).id]);
    inventory.apply({ about: vm(2).id }); // its record has expired
    assert.equal(inventory.vms.size, 1);

    inventory.setSessions([{ id: 's', status: 'vm_created' }]);
    inventory.apply({ about: 's', session: { id: 's', status: 'cancelled' } });
    assert.equal(inventory.sessions.size, 0);
    assert.deepEqual(inventory.sessionRows().map(({ status }) => status), ['cancelled']);
  });

  test('does not keep ended ones without end', () => {
    const inventory = new Inventory();
    for (let i = 0; i < 500; i++) inventory.apply({ about: `${i}`, vm: vm(1, { id: `${i}`, state: 'stopped' }) });
    assert.ok(inventory.ended.length <= 20);
    assert.equal(inventory.ended[0].record.id, '499');
  });

  test('red ones come first, by a finding too; a filter wants all of its words', () => {
    const inventory = new Inventory();
    inventory.setVms([vm(1), vm(2), vm(3, { reachable: false })]);
    inventory.status = { findings: [{ code: 'port.broken', about: vm(1).id, words: 'x', hint: null }] };
    assert.deepEqual(inventory.vmRows().map(({ user }) => user), ['u3', 'u1', 'u2']);
    assert.equal(inventory.toneOf(inventory.vms.get(vm(1).id)), 'bad');
    assert.deepEqual(inventory.vmRows('cli U2').map(({ user }) => user), ['u2']);
    assert.deepEqual(inventory.vmRows('cannot be reached').map(({ user }) => user), ['u3']);
    assert.deepEqual(inventory.vmRows('u2 u3'), []);
  });

  test('joins ports with their VMs', () => {
    const inventory = new Inventory();
    inventory.setVms([vm(1)]);
    inventory.ports = [port(1), port(2), { ...port(3), vm_id: null, name: 'eth7' }];
    assert.deepEqual(inventory.portViews().map(({ key, vmId, label }) => [key, vmId, label]),
      [[port(1).name, vm(1).id, 'u1'], [port(2).name, vm(2).id, port(2).name], ['eth7', null, 'eth7']]);
  });
});
