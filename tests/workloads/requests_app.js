// The routes of requests_app.py in Express; the handlers are the functions that spend the time.
// `/turns/{a|b}/{id}` lets others have their turn in between.
'use strict';
const { setTimeout: sleep } = require('node:timers/promises');
const express = require('express');

const SPENT_MILLISECONDS = 4;
const app = express();

function spend_a(_, response) {
  const end = performance.now() + SPENT_MILLISECONDS;
  while (performance.now() < end);
  if (response) response.send('a\n');
}

function spend_b(_, response) {
  const end = performance.now() + SPENT_MILLISECONDS;
  while (performance.now() < end);
  if (response) response.send('b\n');
}

const turns = (spend) => async (_, response) => {
  spend();
  await sleep(2);
  spend();
  response.send('ok\n');
};

app.get('/a/:id', spend_a);
app.get('/b/:id', spend_b);
app.get('/turns/a/:id', turns(spend_a));
app.get('/turns/b/:id', turns(spend_b));
app.listen(Number(process.env.PORT), '127.0.0.1');
