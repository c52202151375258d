export default {
  input: "../openapi.yaml",
  output: { path: "generated", module: { extension: ".js" } },
  plugins: ["@hey-api/typescript", "@hey-api/sdk", { name: "@hey-api/client-fetch", throwOnError: true }],
  logs: { file: false },
};
