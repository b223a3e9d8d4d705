// Functions that live for some milliseconds, each of a name and a file of its own, while the collector
// moves what is left: node churn.js SECONDS. Prints "ready" when it has begun.
'use strict';

const vm = require('node:vm');

const kept = [];

function spin(milliseconds) {
  const end = performance.now() + milliseconds;
  const garbage = [];
  while (performance.now() < end) garbage.push({ text: 'x' + garbage.length });
  return garbage.length;
}

function once(number) {
  const name = `churn_${String(number).padStart(6, '0')}`;
  const source = `${'\n'.repeat(number % 7)}(function ${name}(spin) { return spin(3); })`;
  const made = vm.runInThisContext(source, { filename: `<${name}>` });
  made(spin);
  // Every other one is gone at once; the rest stays for a while.
  if (number % 2) kept[number % 100] = made;
}

const end = Date.now() + 1000 * Number(process.argv[2]);
process.stdout.write('ready\n');
for (let number = 0; Date.now() < end; number++) once(number);
