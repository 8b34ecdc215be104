"""Everything that enters: datasets and float models, fetched, decoded, checked."""
