"""All of Headway on one machine, under one supervisor: what `headway up`, `headway down` and `headway status` do."""
