// The routes of fastapi_app.py in Express.
'use strict';
const fs = require('node:fs');
const { setImmediate: turn } = require('node:timers/promises');
const express = require('express');

const log = fs.openSync(process.env.TELLTALE_TEST_LOG, 'a');
const app = express();

// A line is written before the last byte of the answer is, so that the time it states lies within
// the time on the wire.
app.use((request, response, next) => {
  const start = process.hrtime.bigint();
  const end = response.end.bind(response);
  response.end = (...rest) => {
    const seconds = Number(process.hrtime.bigint() - start) / 1e9;
    const { method, path } = request;
    const line = { method, path, status: response.statusCode, seconds, pid: process.pid };
    fs.writeSync(log, JSON.stringify(line) + '\n');
    return end(...rest);
  };
  next();
});

app.get('/items/:id', (request, response) => {
  const limit = request.query.limit ?? '1';
  if (!/^\d+$/.test(limit)) return response.status(422).json({ detail: 'limit is not a number' });
  return response.json({ id: Number(request.params.id), limit: Number(limit), name: 'a thing' });
});

app.post('/items', express.raw({ type: () => true, limit: '64mb' }), (request, response) => {
  response.status(201).json({ received: request.body?.length ?? 0 });
});

app.delete('/items/:id', (_, response) => response.status(204).end());

app.get('/get_complete_tree/:id', async (_, response) => {
  response.type('application/json');
  response.write('[');
  for (let node = 0; node < 20; node += 1) {
    response.write(`{"node":${node}},`);
    await turn();
  }
  response.end('{}]');
});

app.get('/cached', (request, response) => {
  response.set('ETag', '"1"');
  if (request.get('If-None-Match') === '"1"') return response.status(304).end();
  return response.send('cached');
});

app.get('/fail', (_, response) => response.status(500).json({ detail: 'as asked' }));

app.get('/sleep/:milliseconds', (request, response) => {
  const milliseconds = Number(request.params.milliseconds);
  setTimeout(() => response.json({ slept: milliseconds }), milliseconds);
});

app.listen(Number(process.env.PORT), '127.0.0.1');
