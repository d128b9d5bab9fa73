/* What is there, as plain data, and what is to be thought of it: no DOM, no network, so that tests/e2e/inventory.test.mjs
 * can try it under node.
 *
 * tone: good | busy | bad | done. A mark goes with each, so that the colour is never the only carrier of a meaning.
 */

import { clean } from './state.js';

export const MARKS = { good: '✓', busy: '…', bad: '!', done: '–' };
const ENDED_KEPT = 20; // that ended while this page looked on

const VM_TONES = {
  creating: 'busy', booting: 'busy', resuming: 'busy', stopping: 'busy', hibernating: 'busy', running: 'good',
  hibernated: 'done', stopped: 'done', failed: 'bad',
};
const SESSION_ENDS = ['completed', 'failed', 'cancelled', 'timeout'];

export const isOver = (vm) => ['stopped', 'failed'].includes(vm?.state);
/* Nobody's yet: it is made up to where only its user is missing. */
const isInPool = (vm) => vm.user === '(pool)' && vm.state === 'creating';
export const vmTone = (vm) => (vm.reachable === false || vm.finding ? 'bad' : isInPool(vm) ? 'done' : VM_TONES[vm.state] ?? 'busy');
export const sessionTone = (session) => ({
  completed: 'good', failed: 'bad', timeout: 'done', cancelled: 'done',
})[session.status] ?? 'busy';

/* "vm-69fac673…": what a person tells VMs apart by. */
export const shortId = (id) => (clean(id, 64).length > 12 ? `${clean(id, 64).slice(0, 11)}…` : clean(id, 64));

/* A VM's state in words. */
export function vmWords(vm) {
  const reach = vm.reachable === false ? ', cannot be reached' : '';
  return `${isInPool(vm) ? 'in the pool' : clean(vm.state, 40)}${reach}`;
}

/* One port with its VM (or none): tone, a name for a person, and a sentence. */
export function portView(port, vm) {
  const where = port.number ? `Port ${port.number}` : 'On no port';
  const name = clean(port.name, 20);
  if (!vm) {
    const tone = port.problem ? 'bad' : 'done';
    const other = port.vm_id ? 'its VM comes or goes' : `not a VM's (${clean(port.kind, 16) || 'hardware'})`;
    const what = port.problem ? `it ${clean(port.problem)}` : other;
    return { tone, label: name, words: `${where}, ${name}: ${what}.` };
  }
  const user = clean(vm.user, 64);
  const what = `${where}, ${name}: ${clean(vm.type, 16)} VM of ${user}, ${vmWords(vm)}`;
  const problem = port.problem ? `. It ${clean(port.problem)}` : '';
  return { tone: port.problem ? 'bad' : vmTone(vm), label: user, words: `${what}${problem}.` };
}

/* Everything that the API told. */
export class Inventory {
  status = null;
  network = null;
  ports = [];
  vms = new Map();      // id -> VM that lives
  sessions = new Map(); // id -> session under way
  ended = [];           // {kind: 'vm'|'session', record}: newest first

  setVms(list) {
    this.vms = new Map(list.map((vm) => [vm.id, vm]));
  }

  setSessions(list) {
    this.sessions = new Map(list.map((session) => [session.id, session]));
  }

  /* One "change" of the event stream. */
  apply({ about, vm, session }) {
    if (vm) this.#put(this.vms, 'vm', vm, isOver(vm));
    else if (session) this.#put(this.sessions, 'session', session, SESSION_ENDS.includes(session.status));
    else this.vms.delete(about) || this.sessions.delete(about);
  }

  #put(map, kind, record, over) {
    if (!over) {
      map.set(record.id, record);
      return;
    }
    map.delete(record.id);
    this.ended = [{ kind, record }, ...this.ended.filter((one) => one.record.id !== record.id)].slice(0, ENDED_KEPT);
  }

  get findings() {
    return this.status?.findings ?? [];
  }

  /* The finding about a VM, or undefined. */
  findingOf(id) {
    return this.findings.find(({ about }) => about === id);
  }

  /* What is red on the bridge is red everywhere. */
  toneOf(vm) {
    return this.findingOf(vm.id) ? 'bad' : vmTone(vm);
  }

  /* Ports with their VMs, in the bridge's order. */
  portViews() {
    return this.ports.map((port) => {
      const vm = this.vms.get(port.vm_id);
      return { key: port.name, number: port.number, vmId: vm ? vm.id : port.vm_id, ...portView(port, vm) };
    });
  }

  /* VMs to show, the red ones first, then the newest: those that live, then those that ended. */
  vmRows(filter = '') {
    const ended = this.ended.filter(({ kind }) => kind === 'vm').map(({ record }) => record);
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (vm) => {
      const text = `${vm.id} ${vm.user} ${vm.type} ${vmWords(vm)} ${vm.ip} ${vm.tap}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    const red = new Set(this.findings.map(({ about }) => about));
    const rank = (vm) => (red.has(vm.id) || vmTone(vm) === 'bad' ? 0 : 1);
    const living = [...this.vms.values()].sort((a, b) => rank(a) - rank(b) || (a.created_at < b.created_at ? 1 : -1));
    return [...living, ...ended].filter(matches);
  }

  sessionRows() {
    const ended = this.ended.filter(({ kind }) => kind === 'session').map(({ record }) => record);
    return [...this.sessions.values(), ...ended];
  }
}
