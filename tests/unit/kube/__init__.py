"""The Helm chart, the manifests rendered from it, and the operator, as far as no cluster is needed."""
