"""Calls the sockets of a service, which are in the folder `run`, as any program in Python does; it fails where one does not answer."""

import os

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

POSTURE = "stepward.v1.PostureService"
EXT_AUTHZ = "envoy.service.auth.v3.Authorization"
HEALTH = "grpc.health.v1.Health"
REFLECTION = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
SERVED = {
    "filter.sock": ["stepward.v1.FilterService"],
    "query.sock": [POSTURE, EXT_AUTHZ, *REFLECTION],
    "admin.sock": ["stepward.v1.AdminService"],
}
CHECK = {"policy": "engineers", "identifier": os.environ["DEVICE"]}


def health(channel, service):
    try:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    except grpc.RpcError as error:
        return error.code()


def caller(channel, pool, method, how):
    """A function that makes the call, and the class of its requests."""
    method = pool.FindServiceByName(POSTURE).FindMethodByName(method)
    request = message_factory.GetMessageClass(method.input_type)
    answer = message_factory.GetMessageClass(method.output_type)
    path = f"/{POSTURE}/{method.name}"
    call = getattr(channel, how)(path, request_serializer=request.SerializeToString, response_deserializer=answer.FromString)
    return lambda **fields: call(request(**fields), timeout=10)


def ask(channel):
    descriptions = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(descriptions.get_services()) == sorted([POSTURE, HEALTH, *REFLECTION]), descriptions.get_services()
    pool = descriptor_pool.DescriptorPool(descriptions)
    allow = pool.FindEnumTypeByName("stepward.v1.Decision").values_by_name["DECISION_ALLOW"].number
    assert caller(channel, pool, "Check", "unary_unary")(**CHECK).decision == allow
    results = caller(channel, pool, "BatchCheck", "unary_unary")(checks=[CHECK] * 100).results
    assert [result.decision for result in results] == [allow] * 100
    watch = caller(channel, pool, "Watch", "unary_stream")(checks=[CHECK])
    assert next(watch).result.decision == allow
    watch.cancel()
    assert caller(channel, pool, "Lookup", "unary_unary")(identifier=CHECK["identifier"]).answers[0].provider == "staff"


for socket, services in SERVED.items():
    # By its path from here, by its whole path, and with requests that are compressed.
    for target, compression in [
        (f"unix:run/{socket}", None),
        (f"unix://{os.getcwd()}/run/{socket}", None),
        (f"unix:run/{socket}", grpc.Compression.Gzip),
    ]:
        with grpc.insecure_channel(target, compression=compression) as channel:
            for name in ["", HEALTH, *services]:
                assert health(channel, name) == health_pb2.HealthCheckResponse.SERVING, (target, compression, name, health(channel, name))
            others = {name for names in SERVED.values() for name in names} - set(services)
            for name in others:
                assert health(channel, name) == grpc.StatusCode.NOT_FOUND, (target, name)
            if socket == "query.sock":
                ask(channel)
