// Spends CPU time 50, 30 and 20 parts under three functions, each at the bottom of 20 nested calls:
// node split.js SECONDS
//
// What one overshoots its time by, it waits less the next time. Prints "ready" when it has begun.
'use strict';

const owed = { fifty: 0, thirty: 0, twenty: 0 };

function cpuMicroseconds() {
  const { user, system } = process.cpuUsage();
  return user + system;
}

function spin() {
  let sum = 0;
  for (let turn = 0; turn < 200000; turn++) sum = (sum + turn * turn) | 0;
  return sum;
}

function burn(who, microseconds) {
  owed[who] += microseconds;
  const begin = cpuMicroseconds();
  let used = 0;
  while (used < owed[who]) {
    spin();
    used = cpuMicroseconds() - begin;
  }
  owed[who] -= used;
}

function nestFifty(depth) {
  if (depth > 1) return nestFifty(depth - 1) + 1;
  burn('fifty', 5000);
  return 0;
}

function nestThirty(depth) {
  if (depth > 1) return nestThirty(depth - 1) + 1;
  burn('thirty', 3000);
  return 0;
}

function nestTwenty(depth) {
  if (depth > 1) return nestTwenty(depth - 1) + 1;
  burn('twenty', 2000);
  return 0;
}

const end = Date.now() + 1000 * Number(process.argv[2]);
process.stdout.write('ready\n');
while (Date.now() < end) {
  nestFifty(20);
  nestThirty(20);
  nestTwenty(20);
}
