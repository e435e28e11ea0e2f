# Asks a running service about a device: python3 ask.py run/query.sock staff-mac C02XL0GYJGH5
# docs/queries.md shows it, and how to make the modules of Stepward.

import sys

import grpc
from stepward.v1 import posture_pb2, posture_pb2_grpc

socket, policy, identifier = sys.argv[1:]
with grpc.insecure_channel(f"unix:{socket}") as channel:
    client = posture_pb2_grpc.PostureServiceStub(channel)
    answer = client.Check(posture_pb2.CheckRequest(policy=policy, identifier=identifier), timeout=2)
if answer.decision == posture_pb2.DECISION_ALLOW:
    print("allowed:", answer.data)
elif answer.decision == posture_pb2.DECISION_DENY:
    print(f"denied: {answer.message} ({answer.code}) {answer.remediation_url}")
else:
    # Whatever this program does not know is no allow either.
    print("nobody can say at present:", answer.message)
