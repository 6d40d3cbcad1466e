#!/bin/sh
# Ask a service, by curl: sh examples/http/score.sh [ADDRESS], from the folder of the checkout.
set -eu
address="${1:-http://localhost:8000}"

# A verdict on each row; rows are JSON, an array of numpy, a table, or images.
curl -sS --fail-with-body "$address/score?false_alarm=0.01" -H 'content-type: application/json' -d @examples/rows.json |
  grep -o '"verdict":"[a-z]*"'
curl -sS --fail-with-body "$address/score?false_alarm=0.01" -F file=@examples/valid/digit-3.png -F file=@examples/invalid/boot.png |
  grep -o '"verdict":"[a-z]*"'

# What the model makes of a row, and rows that it draws.
curl -sS --fail-with-body "$address/reconstruct.npy" -H 'content-type: image/png' --data-binary @examples/valid/digit-3.png | wc -c
curl -sS --fail-with-body "$address/sample.png?num=4&seed=7" | wc -c

# An error says what to send instead.
curl -sS "$address/score" -d @examples/rows.json | grep -o '"detail":"[^"]*"'
