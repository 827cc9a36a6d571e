// The node's inference server: a KServe v2 server in place of Triton, for models that add one to INPUT0.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

const { inference } = grpc.loadPackageDefinition(
  loadSync(path.join(__dirname, "kserve.proto"), { keepCase: true, longs: Number, defaults: true }),
);

// Per loaded model: what a heartbeat says of it.
class Models {
  constructor() {
    this.loaded = new Map();
  }

  load(name, version) {
    this.loaded.set(name, { name, version, successes: 0, failures: 0, success_ns: 0, queue_ns: 0 });
  }

  infer(request) {
    const started = process.hrtime.bigint();
    const model = this.loaded.get(request.model_name);
    if (!model) {
      const error = new Error(`model '${request.model_name}' is not loaded`);
      throw Object.assign(error, { code: grpc.status.NOT_FOUND });
    }
    const [input] = request.inputs;
    const raw = Buffer.from(request.raw_input_contents[0]);
    for (let at = 0; at < raw.length; at += 4) raw.writeFloatLE(raw.readFloatLE(at) + 1, at);
    model.successes += 1;
    model.success_ns += Number(process.hrtime.bigint() - started);
    const output = { name: "OUTPUT0", datatype: input.datatype, shape: input.shape };
    return { model_name: model.name, id: request.id, outputs: [output], raw_output_contents: [raw] };
  }
}

function answering(answer) {
  return (call, done) => {
    try {
      done(null, answer(call.request));
    } catch (error) {
      done(error);
    }
  };
}

// Serves on a free port of the address; gives the port and the models.
async function serve(address) {
  const models = new Models();
  const server = new grpc.Server();
  server.addService(inference.GRPCInferenceService.service, {
    ServerLive: answering(() => ({ live: true })),
    ServerReady: answering(() => ({ ready: true })),
    ModelReady: answering(({ name }) => ({ ready: models.loaded.has(name) })),
    ModelInfer: answering((request) => models.infer(request)),
  });
  const port = await new Promise((resolve, reject) => {
    server.bindAsync(`${address}:0`, grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    );
  });
  return { models, port };
}

module.exports = { serve };
