"""The Kubernetes operator: a resource `MillstreamWorker` becomes a StatefulSet, a Service and a PodDisruptionBudget.

`kopf run -m millstream.operator.handlers`; needs the extra `operator`. docs/deployment.md says how to install it.
spec, objects and status are pure functions, cluster talks to the API server, handlers tie them to events.
"""
