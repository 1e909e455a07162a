"""The paper's tables: what was published, its authors' protocol, and the tables in small."""
