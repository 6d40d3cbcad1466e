"""What a Python program does with the client that openapi-python-client generates.

python use_python.py ADDRESS IMAGE ROW
"""

import json
import sys
from pathlib import Path

from vouch_client import Client
from vouch_client.api.files import score_files
from vouch_client.api.generate import reconstruct, sample
from vouch_client.api.score import score
from vouch_client.models import Files, Instances, Problem, ScoresAnswer
from vouch_client.types import File

address, image, row = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
client = Client(base_url=address)

answer = score.sync(client=client, body=Instances(instances=[row]), false_alarm=0.1)
assert isinstance(answer, ScoresAnswer), answer
log_likelihood = answer.scores[0].log_likelihood
assert answer.scores[0].verdict in ("valid", "invalid")

with image.open("rb") as opened:
    form = Files(file=[File(payload=opened, file_name=image.name, mime_type="image/png")])
    answer = score_files.sync(client=client, body=form, false_alarm=0.1)
assert isinstance(answer, ScoresAnswer), answer
assert answer.scores[0].log_likelihood == log_likelihood
assert answer.scores[0].id == image.name

rebuilt = reconstruct.sync(client=client, body=Instances(instances=[row]), draws=2)
assert len(rebuilt.reconstructions[0].draws) == 2
drawn = sample.sync(client=client, num=3, seed=7)
assert drawn.seed == 7
assert len(drawn.samples) == 3

problem = score.sync(client=client, body=Instances(instances=[[1.0]]))
assert isinstance(problem, Problem), problem
assert problem.status == 422
assert "expected" in problem.detail
print("done")
