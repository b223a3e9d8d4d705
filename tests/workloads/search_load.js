// A service that asks a cluster many things at once, as search_load.py does:
// `node search_load.js opensearch|elasticsearch URL plain|gzip CALLS`.

'use strict';

const WORKERS = 8;
const [library, node, coding, calls] = process.argv.slice(2);
const { Client } =
  library === 'opensearch' ? require('@opensearch-project/opensearch') : require('@elastic/elasticsearch');

const counts = new Map();
const took = new Map();
const items = new Map();
const add = (map, key, amounts) => {
  const name = JSON.stringify(key);
  map.set(name, (map.get(name) ?? amounts.map(() => 0)).map((sum, at) => sum + amounts[at]));
};
const told = (map) => [...map].map(([key, amounts]) => [...JSON.parse(key), ...amounts]);

function outcome(status) {
  if (status < 300) return 'succeeded';
  return { 404: 'not_found', 409: 'conflict', 429: 'rejected' }[status] ?? 'failed';
}

const client = new Client({ node, compression: coding === 'gzip' ? 'gzip' : false, maxRetries: 0, requestTimeout: 60000 });

client.on('response', (error, result) => {
  const answer = result ?? error.meta;
  const asked = answer.meta.context;
  // The Elasticsearch client asks who answers before its first call.
  const [operation, index] = asked?.operation ? [asked.operation, asked.index] : ['info', ''];
  add(counts, [operation, index, String(answer.statusCode)], [1]);
  if (Number.isInteger(answer.body?.took)) add(took, [operation, index], [1, answer.body.took]);
  for (const item of answer.body?.items ?? []) {
    const [[action, { status }]] = Object.entries(item);
    add(items, [index, action, outcome(status)], [1]);
  }
});

function call(worker, number) {
  const index = `load-js-${worker % 2}`;
  const id = `${worker}-${Math.floor(number / 6)}`;
  const query = { query: { match: { title: 'telltale' } }, size: 2 };
  const documents = [];
  for (let item = 0; item < 20; item += 1) documents.push({ index: { _id: `${id}-${item}` } }, { title: 'telltale' });
  documents.push({ delete: { _id: 'missing' } });
  return [
    ['index', index, { index, id, body: { title: 'telltale' } }],
    ['get', index, { index, id }],
    ['search', index, { index, body: query }],
    ['bulk', index, { index, body: documents }],
    ['msearch', '', { body: [{ index }, query, { index }, query] }],
    ['exists', index, { index, id: 'missing' }],
  ][number % 6];
}

async function work(worker) {
  for (let number = 0; number < Number(calls) / WORKERS; number += 1) {
    const [operation, index, parameters] = call(worker, number);
    try {
      await client[operation](parameters, { context: { operation, index } });
    } catch (error) {
      // That the cluster said no is an answer, too.
      if (!error.meta?.statusCode) throw error;
    }
  }
}

Promise.all([...Array(WORKERS).keys()].map(work)).then(() => {
  console.log(JSON.stringify({ calls: told(counts), took: told(took), items: told(items) }));
});
