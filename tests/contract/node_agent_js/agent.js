// A node agent in Node.js, written from membership.proto alone: joins, sends heartbeats, fetches and checks what it is
// assigned, loads it, reports it. Run: node agent.js <folder of the protos> <node id> <coordinator>...
"use strict";

const crypto = require("node:crypto");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");
const { serve } = require("./inference.js");

const ADDRESS = "127.0.0.1";
const FETCH_TIMEOUT_MS = 30_000;
const MOST_BACK_OFF_MS = 2_000;
const [protos, nodeId, ...configured] = process.argv.slice(2);
const { aimesh } = grpc.loadPackageDefinition(
  loadSync(["aimesh/membership/v1/membership.proto", "aimesh/artifacts/v1/artifacts.proto"], {
    includeDirs: [protos],
    keepCase: true,
    longs: Number,
    enums: String,
    defaults: true,
  }),
);
const insecure = grpc.credentials.createInsecure();
const log = (event, more = {}) => process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);

class Agent {
  constructor(inference) {
    this.inference = inference;
    this.instanceId = crypto.randomUUID();
    this.statuses = new Map(); // ModelStatus by model name
    this.blobs = new Map(); // content by digest
    this.revision = 0;
    this.coordinators = configured;
    this.stream = null;
  }

  report() {
    return {
      triton: { state: "TRITON_STATE_READY", grpc_port: this.inference.port, pid: process.pid, version: "node.js" },
      models: [...this.statuses.values()],
      blobs: [...this.blobs.keys()],
      assignments_revision: this.revision,
    };
  }

  hello() {
    return {
      node_id: nodeId,
      instance_id: this.instanceId,
      agent_version: "node.js",
      address: ADDRESS,
      pid: process.pid,
      capacity: { cpu_cores: 1, memory_bytes: 2 ** 32, disk_bytes: 2 ** 32 },
      labels: { language: "javascript" },
      report: this.report(),
    };
  }

  load() {
    return {
      memory_used_bytes: process.memoryUsage().rss,
      triton_resident_bytes: process.memoryUsage().rss,
      models: [...this.inference.models.loaded.values()],
    };
  }

  // Joins one coordinator after the other, for ever, with back-off and full jitter.
  async run() {
    for (let turn = 0, failures = 0; ; turn += 1) {
      const ended = await this.session(this.coordinators[turn % this.coordinators.length]);
      failures = ended.welcomed ? 0 : failures + 1;
      log("session.ended", { reason: ended.reason });
      const most = Math.min(MOST_BACK_OFF_MS, 100 * 2 ** failures);
      await new Promise((resolve) => setTimeout(resolve, Math.random() * most));
    }
  }

  session(address) {
    const client = new aimesh.membership.v1.MembershipService(address, insecure);
    const stream = client.Join();
    let heartbeats = null;
    let reason = "the coordinator ended the session";
    this.stream = stream;
    stream.write({ hello: this.hello() });
    stream.on("data", ({ welcome, assignments }) => {
      if (welcome) {
        log("welcomed", { epoch: welcome.epoch });
        this.coordinators = [...new Set([...configured, ...welcome.coordinators])];
        const { seconds, nanos } = welcome.heartbeat_interval;
        const beat = () => stream.write({ heartbeat: { load: this.load() } });
        heartbeats = setInterval(beat, seconds * 1000 + nanos / 1e6);
      }
      if (assignments) this.take(assignments);
    });
    return new Promise((resolve) => {
      stream.on("error", (error) => (reason = error.message));
      stream.on("close", () => {
        clearInterval(heartbeats);
        client.close();
        resolve({ welcomed: heartbeats !== null, reason });
      });
    });
  }

  // Assignments are whole: what is not listed goes.
  take({ revision, models }) {
    this.revision = revision;
    const wanted = new Map(models.map((model) => [model.name, model]));
    for (const [name, status] of this.statuses) {
      if (wanted.get(name)?.version === status.version) continue;
      this.statuses.delete(name);
      this.inference.models.loaded.delete(name);
    }
    for (const model of wanted.values()) if (!this.statuses.has(model.name)) this.start(model);
    this.tell();
  }

  async start(model) {
    const { name, version } = model;
    const total = model.files.reduce((sum, file) => sum + file.size, 0);
    const status = { name, version, state: "MODEL_STATE_FETCHING", bytes_total: total };
    this.statuses.set(name, status);
    try {
      for (const file of model.files) this.blobs.set(file.digest, await this.fetch(file));
      this.inference.models.load(name, version);
      status.state = "MODEL_STATE_READY";
    } catch (error) {
      Object.assign(status, { state: "MODEL_STATE_FAILED", message: error.message });
    }
    log("model", status);
    if (this.statuses.get(name) !== status) this.inference.models.loaded.delete(name); // no longer assigned
    this.tell();
  }

  async fetch({ digest, path: file }) {
    const client = new aimesh.artifacts.v1.ArtifactsService(this.coordinators[0], insecure);
    const chunks = [];
    const call = client.DownloadBlob({ digest, offset: 0 }, { deadline: Date.now() + FETCH_TIMEOUT_MS });
    for await (const { data } of call) chunks.push(data);
    client.close();
    const content = Buffer.concat(chunks);
    const found = crypto.createHash("sha256").update(content).digest("hex");
    if (found !== digest) throw new Error(`${file} has the digest ${found} and not ${digest}`);
    return content;
  }

  tell() {
    this.stream?.write({ report: this.report() });
  }

  // Leaving is the last message; the coordinator ends the stream when it has taken it in.
  leave() {
    this.stream.on("close", () => process.exit(0));
    this.stream.write({ leaving: { reason: "shutdown" } });
    this.stream.end();
  }
}

serve(ADDRESS).then((inference) => {
  const agent = new Agent(inference);
  process.on("SIGTERM", () => agent.leave());
  return agent.run();
});
