"""What every layer stands on: settings, logs, errors, metrics, failpoints, the embedded broker. Imports nothing of ours."""
