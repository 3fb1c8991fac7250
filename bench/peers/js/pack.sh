#!/bin/bash
# bench/peers/js/pack.sh FOLDER: the JavaScript peers and just the files of their packages that run on Linux x64,
# for a host without a network.
# Plain files, no links; node_modules is flat and Deno takes it as it is (nodeModulesDir "manual").
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
out=$(realpath -m "$1")
cd "$(dirname "$0")"
[ -d node_modules ] || deno install --quiet
take() { # package, patterns of its files
  mkdir -p "$out/node_modules/$1"
  (cd "node_modules/$1" && cp -r --parents package.json $2 "$out/node_modules/$1")
}
take @jax-js/jax 'dist/*.js dist/index.d.ts'
take onnxruntime-common 'dist/cjs dist/esm'
take onnxruntime-web 'types.d.ts dist/ort.webgpu.bundle.min.mjs dist/ort-wasm-simd-threaded.asyncify.*'
take onnxruntime-node 'dist bin/napi-v6/linux/x64'
cp common.ts onnx.ts jax_js.ts ort.ts "$out"
sed 's/"nodeModulesDir": "auto"/"nodeModulesDir": "manual"/' deno.json > "$out/deno.json"
