"""OTLP: encoding spans, reading OTLP JSON, and sending batches over HTTP."""
