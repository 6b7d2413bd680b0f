"""Jobs: what may be asked (`spec`), how they live (`states`), and the commands on them."""
