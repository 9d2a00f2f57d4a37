"""Run directories: files, records, locks and progress of one run.

- `directory`, `ledger`: the run directory, its stage records and tables.
- `storage`, `remote`: atomic and durable files. `records`: reading them. `disk_errors`, `locks`: what disks refuse.
- `mirror`, `lease`: local mirror and lock of a remote run directory. `shards`: datasets in parts.
- `schemas`, `types`: Arrow schemas and the values that actors exchange. `hashing`: content keys.
- `progress`, `telemetry`, `throughput`, `timeline`, `status`, `logs`: what a run reports.
- `preemption`, `ray_session`, `startup`: the process and its connection to Ray.

No module here knows models, actor pools or stages.
"""
