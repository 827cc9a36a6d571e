// A Node.js client of KServe v2: everything it was answered, as one JSON object on standard output.
// node client.js <FileDescriptorSet file> <target> [<target of a model that does not exist>]
"use strict";

const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const { loadFileDescriptorSetFromBuffer } = require("@grpc/proto-loader");

const DEADLINE_MS = 15_000;
const [descriptors, target, missingTarget] = process.argv.slice(2);
if (target.startsWith("xds:")) require("@grpc/grpc-js-xds").register();

const { inference } = grpc.loadPackageDefinition(
  loadFileDescriptorSetFromBuffer(fs.readFileSync(descriptors), { keepCase: true, longs: Number, defaults: true }),
);
const connect = (to) => new inference.GRPCInferenceService(to, grpc.credentials.createInsecure());

function request(model, values, id) {
  return {
    model_name: model,
    id,
    inputs: [{ name: "INPUT0", datatype: "FP32", shape: [values.length] }],
    raw_input_contents: [Buffer.from(new Float32Array(values).buffer)],
  };
}

function numbers(response) {
  const raw = Buffer.from(response.raw_output_contents[0]);
  return Array.from({ length: raw.length / 4 }, (_, index) => raw.readFloatLE(4 * index));
}

function call(client, method, message) {
  return new Promise((resolve, reject) => {
    client[method](message, { deadline: Date.now() + DEADLINE_MS }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

function stream(client, messages) {
  return new Promise((resolve, reject) => {
    const answers = [];
    const both = client.ModelStreamInfer({ deadline: Date.now() + DEADLINE_MS });
    both.on("data", (data) => answers.push({ id: data.infer_response.id, numbers: numbers(data.infer_response) }));
    both.on("error", reject);
    both.on("end", () => resolve(answers));
    for (const message of messages) both.write(message);
    both.end();
  });
}

async function main() {
  const client = connect(target);
  const seen = {
    live: (await call(client, "ServerLive", {})).live,
    modelReady: (await call(client, "ModelReady", { name: "addone" })).ready,
    metadata: (await call(client, "ModelMetadata", { name: "addone" })).inputs.map((input) => input.name),
    config: (await call(client, "ModelConfig", { name: "addone" })).config.backend,
    infer: numbers(await call(client, "ModelInfer", request("addone", [1, 2.5, -4], "one"))),
    stream: await stream(client, [request("addone", [1], "a"), request("addone", [2], "b")]),
  };
  const elsewhere = connect(missingTarget || target);
  seen.missing = await call(elsewhere, "ModelInfer", request("nosuch", [1], "none")).then(
    () => "answered",
    (error) => ({ code: grpc.status[error.code], details: error.details }),
  );
  process.stdout.write(JSON.stringify(seen), () => process.exit(0));
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
