"""Survey: section 3.2.  Policies that draw: diffusion, flow and image tokens, by one contract."""
