#!/usr/bin/env bash
# Ask a running server twice over HTTP: the whole answer at once, then as a stream of events.
set -euo pipefail
url=${1:-http://127.0.0.1:8000}/v2/models/d3llm
question='[{"role": "user", "content": "Raj is 9 years old. Emma is 4 times as old as Raj. How old will Emma be in 17 years?"}]'
body() { python3 -c 'import json, sys; print(json.dumps({"messages": sys.argv[1], "stream": sys.argv[2] == "yes"}))' "$question" "$1"; }
curl --silent --fail-with-body "$url/generate" --data "$(body no)"; echo
curl --silent --fail-with-body --no-buffer "$url/generate_stream" --data "$(body yes)"
