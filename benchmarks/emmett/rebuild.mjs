// Emmett's own rebuild of a projection, for as long as it is given.
//
//   node rebuild.mjs schema URL                   makes the event store's tables
//   node rebuild.mjs rebuild URL SECONDS BATCH    prints {"events": …, "seconds": …}
import { readFileSync } from 'node:fs';
import { rawSql } from '@event-driven-io/dumbo';
import {
  getPostgreSQLEventStore,
  postgreSQLRawSQLProjection,
  rebuildPostgreSQLProjections,
} from '@event-driven-io/emmett-postgresql';

const [, , command, url, seconds, batch] = process.argv;
const statements = JSON.parse(
  readFileSync(new URL('../peer_statements.json', import.meta.url), 'utf8'),
);
let events = 0;
let began = 0;
let ended = 0;

const literal = (value) =>
  value === undefined || value === null ? 'NULL' : `'${String(value).replaceAll("'", "''")}'`;

const valuesOf = ({ type, data, metadata }) => ({
  ...data,
  type,
  event_id: metadata.messageId,
  stream: metadata.streamName,
  occurred_at: metadata.occurred_at,
  ip_address: metadata.ip_address,
  request_id: metadata.request_id,
  signed_quantity: data.action === 'sell' ? `-${data.quantity}` : data.quantity,
  details: JSON.stringify(data),
});

const projection = postgreSQLRawSQLProjection({
  name: 'read_models',
  canHandle: Object.keys(statements),
  evolve: (event) => {
    events += 1;
    ended = performance.now();
    const values = valuesOf(event);
    return statements[event.type].map((statement) =>
      rawSql(statement.replace(/(?<!:):([a-z_]+)/g, (_, name) => literal(values[name]))),
    );
  },
});

if (command === 'schema') {
  const store = getPostgreSQLEventStore(url);
  await store.schema.migrate();
  await store.close();
} else {
  const consumer = rebuildPostgreSQLProjections({
    connectionString: url,
    projections: [projection],
    pulling: { batchSize: Number(batch), pullingFrequencyInMs: 1 },
  });
  const end = setTimeout(() => void consumer.stop(), Number(seconds) * 1000);
  began = performance.now();
  await consumer.start();
  clearTimeout(end);
  console.log(JSON.stringify({ events, seconds: (ended - began) / 1000 }));
  await consumer.close();
}
process.exit(0);
