"""Logs, metrics and readiness: what operators see of the running service.

`record` describes a finished request. `metrics` sums up the records, in files that all processes of
an instance share: `multiprocess_dir` is their directory, and `dead_workers` preserves the counts of
processes that have exited. `readiness` checks the store and Dify.
"""

import os

# prometheus_client checks on import whether this is set, to know that there are several processes.
os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "")
