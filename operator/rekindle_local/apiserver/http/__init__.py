"""Requests and answers: verbs, tables, watches, logs, protobuf bodies."""
