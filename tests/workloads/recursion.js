// Calls from one function to another and back, down to a small one: node recursion.js SECONDS
//
// even(2) > odd(1) > even(0) > last(0). Prints "ready" when it has begun.
'use strict';

function last(n) {
  return (n * 7 + (n >> 3)) ^ (n << 2);
}

// V8 returns in another way from calls with more arguments than the function has.
function even(n) {
  return n === 0 ? last(n, n) | 0 : odd(n - 1) + 1;
}

function odd(n) {
  return even(n - 1) + 1;
}

const end = Date.now() + 1000 * Number(process.argv[2]);
process.stdout.write('ready\n');
let sum = 0;
while (Date.now() < end) {
  for (let turn = 0; turn < 1000; turn++) sum = (sum + even(2)) | 0;
}
