// Calls of every kind through a router; prints what came back as one line of JSON.
// Usage: node client.js ADDRESS PROTO
"use strict";
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, proto] = process.argv.slice(2);
const { Kinds } = grpc.loadPackageDefinition(loader.loadSync(proto)).kinds.v1;
const limits = {
  "grpc.max_receive_message_length": 64 * 1024 * 1024,
  "grpc.max_send_message_length": 64 * 1024 * 1024,
  "grpc.enable_retries": 0,
};
const plain = new Kinds(address, grpc.credentials.createInsecure(), limits);
const gzip = new Kinds(address, grpc.credentials.createInsecure(), {
  ...limits,
  "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip,
});

const message = (text) => ({ value: Buffer.from(text) });
const text = (answer) => answer.value.toString();
const pairs = (metadata) =>
  Object.fromEntries(
    Object.keys(metadata.getMap())
      .sort()
      .map((name) => [
        name,
        metadata.get(name).map((value) => (Buffer.isBuffer(value) ? value.toString("hex") : value)),
      ]),
  );
const failure = (error) => ({
  code: error.code,
  details: error.details,
  metadata: pairs(error.metadata),
});
const given = () => {
  const metadata = new grpc.Metadata();
  metadata.add("k", "first");
  metadata.add("k", "second");
  metadata.add("k-bin", Buffer.from([0, 255]));
  return metadata;
};

// One promise a call: its messages, metadata and failure, whatever its kind.
function run(client, method, sent, { metadata = new grpc.Metadata(), options = {}, cancelMs } = {}) {
  return new Promise((resolve) => {
    const got = { messages: [] };
    let open = 2; // the answer, and the status
    const done = () => --open === 0 && resolve(got);
    const answered = (error, answer) => {
      if (error) got.failure = failure(error);
      else got.messages.push(text(answer));
      done();
    };
    const up = method === "Up" || method === "Both";
    const down = method === "Down" || method === "Both";
    const first = up ? [] : [message(sent[0])];
    const call = client[method](...first, metadata, options, ...(down ? [] : [answered]));
    call.on("metadata", (metadata) => (got.initial = pairs(metadata)));
    call.on("status", (status) => {
      got.trailing = pairs(status.metadata);
      done();
    });
    if (down) {
      call.on("data", (answer) => got.messages.push(text(answer)));
      call.on("error", (error) => {
        got.failure = failure(error);
        done();
      });
      call.on("end", () => got.failure || done());
    }
    if (up) {
      for (const one of sent) call.write(message(one));
      call.end();
    }
    if (cancelMs) setTimeout(() => call.cancel(), cancelMs);
  });
}

async function main() {
  const found = {};
  for (const method of ["One", "Down", "Up", "Both"]) {
    const sent = method === "One" || method === "Down" ? ["a"] : ["a", "b"];
    found[method] = {
      passed: await run(plain, method, sent, { metadata: given() }),
      packed: (await run(gzip, method, ["z".repeat(100_000)])).messages.join("").length,
      failed: await run(plain, method, ["fail"]),
      late: await run(plain, method, ["hang"], { options: { deadline: Date.now() + 300 } }),
      cancelled: await run(plain, method, ["hang"], { cancelMs: 500 }),
    };
  }
  const large = await run(plain, "One", ["x".repeat(30 * 1024 * 1024)]);
  found.large = large.messages[0].length;
  console.log(JSON.stringify(found));
  plain.close();
  gzip.close();
}

main();
