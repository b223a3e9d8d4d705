// Many kinds of functions, each of which ends in `spin`, while the collector moves what they are made
// of: node calls.js SECONDS. Prints "ready" when it has begun.
'use strict';

const sink = [];
function spin() {
  let s = 0; const garbage = [];
  for (let i = 0; i < 3000; i++) { s = (s + i * i) | 0; garbage.push({ i, s: 'x' + i }); }
  sink[s & 7] = garbage;
  return s;
}
class Shape {
  constructor() { this.x = constructorCalls(); }
  area() { return methodCalls(); }
  get size() { return getterCalls(); }
  static make() { return staticCalls(); }
  #secret() { return privateCalls(); }
  open() { return this.#secret(); }
  ['computed name']() { return computedCalls(); }
}
function constructorCalls() { return spin(); }
function methodCalls() { return spin(); }
function getterCalls() { return spin(); }
function staticCalls() { return spin(); }
function privateCalls() { return spin(); }
function computedCalls() { return spin(); }
const arrow = () => spin();
const object = { method() { return arrow(); }, named: function inner() { return spin(); }, anon: function () { return spin(); } };
function* generator() { for (let i = 0; i < 3; i++) yield spin(); }
async function asynchronous() { await null; spin(); await null; spin(); }
function closureMaker(n) { return function closure() { return spin() + n; }; }
function ünïcode() { return spin(); }
const 日本 = () => spin();
function mapped() { return [1, 2].map(function mapper(x) { return spin() + x; }); }
function sorted() { return [3, 2, 1].sort(function comparator(a, b) { spin(); return a - b; }); }
function replaced() { return 'abc'.replace(/b/, function replacer() { return spin(); }); }
function json() { return JSON.stringify({ toJSON: function toJSON() { return spin(); } }); }
const evaluated = eval('(function evaluated() { return spin(); })');
const constructed = new Function('spin', 'return spin();');
async function main() {
  const end = Date.now() + 1000 * Number(process.argv[2]);
  process.stdout.write('ready\n');
  while (Date.now() < end) {
    const shape = new Shape();
    shape.area(); shape.size; Shape.make(); shape.open(); shape['computed name']();
    object.method(); object.named(); object.anon();
    for (const _ of generator());
    await asynchronous();
    closureMaker(1)(); closureMaker(2)();
    ünïcode(); 日本(); mapped(); sorted(); replaced(); json(); evaluated(); constructed(spin);
  }
}
main();
