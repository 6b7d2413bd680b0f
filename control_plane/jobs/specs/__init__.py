"""The specs of every job type, a module each. `control_plane.jobs.spec` names what others use of them."""
