"""The ingestion service: frames from the exchange become records in Kafka, each one accounted for."""
