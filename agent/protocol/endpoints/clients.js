'use strict';
// Every request line that a JavaScript client can make: `node clients.js PACKAGE_FOLDER`.
//
// Calls each method of the client's API with each subset of the parameters that its path is made of, and prints
// what the method hands to the transport: operation, method, path.

const fs = require('fs');
const path = require('path');

// What methods ask for beside the path, one after the other until a request is made.
const BODIES = [{ body: {} }, {}, { body: [{}] }, { body: 'x' }];

const root = path.resolve(process.argv[2]);
const snake = (name) => name
  .replace(/([a-z])([A-Z])/g, '$1_$2')
  .replace(/([A-Z])([A-Z][a-z])/g, '$1_$2')
  .toLowerCase();
const subsets = (list) => list.reduce((all, item) => all.concat(all.map((set) => [...set, item])), [[]]);
const lines = new Set();
let made = null;
const transport = { request: async (request) => { made ??= request; return {}; } };

async function call(operation, method, client) {
  const source = method.toString();
  const names = new Set();
  for (const match of source.matchAll(/(?:encodeURIComponent|parsePathParam)\((?:params\.)?(\w+)/g)) {
    names.add(match[1]);
  }
  for (const chosen of subsets([...names])) {
    const given = Object.fromEntries(chosen.map((name) => [name, `a-${name.replace(/^_/, '')}`]));
    for (const body of BODIES) {
      made = null;
      try {
        await method.call(client, { ...given, ...body }, {});
      } catch {
        // A parameter is missing: the client makes no such request.
      }
      // Some old methods put `undefined` where a parameter is missing.
      if (made && made.path && !made.path.includes('undefined')) {
        const target = path.posix.join('/', made.path.split('?')[0]);
        lines.add(`${operation} ${made.method} ${target}`);
      }
    }
  }
}

/** The OpenSearch client from 3 on has a file a method, in a folder a namespace. */
async function callFiles(folder) {
  for (const namespace of fs.readdirSync(folder)) {
    const inner = path.join(folder, namespace);
    // `http` sends what it is told to.
    if (['_types', 'http'].includes(namespace) || !fs.statSync(inner).isDirectory()) continue;
    for (const file of fs.readdirSync(inner)) {
      if (!file.endsWith('.js') || file === '_api.js') continue;
      const name = snake(file.slice(0, -3));
      const operation = namespace === '_core' ? name : `${snake(namespace)}.${name}`;
      await call(operation, require(path.join(inner, file)), { transport });
    }
  }
}

/** The others have a file a namespace, with a class, or a file a method. */
async function callClasses(folder) {
  const anything = new Proxy({}, { get: () => ({ path: [], body: [], query: [] }) });
  for (const file of fs.readdirSync(folder).filter((name) => name.endsWith('.js'))) {
    const module = require(path.join(folder, file));
    const member = module.default || module;
    if (typeof member !== 'function') continue;
    const name = snake(file.slice(0, -3));
    const methods = Object.getOwnPropertyNames(member.prototype || {}).filter((key) => key !== 'constructor');
    if (methods.length === 0) {
      const self = new Proxy({}, { get: (_, key) => (key === 'transport' ? transport : anything) });
      await call(name, member, self);
      continue;
    }
    const client = new member(transport, Error);
    client.transport = transport;
    for (const key of methods) {
      const method = member.prototype[key];
      if (typeof method === 'function') await call(`${name}.${snake(key)}`, method, client);
    }
  }
}

async function main() {
  const files = path.join(root, 'api');
  if (fs.existsSync(path.join(files, '_core'))) {
    await callFiles(files);
  } else {
    const classes = path.join(root, 'lib/api/api');
    await callClasses(fs.existsSync(classes) ? classes : path.join(files, 'api'));
  }
  console.log([...lines].sort().join('\n'));
}

main();
