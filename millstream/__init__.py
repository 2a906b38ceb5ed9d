"""What every layer stands on: settings, logs, errors, metrics, failpoints, embedded broker. Imports nothing of ours."""
