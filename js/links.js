// Colours of the pack's own links and slots, in both renderers.
import { colourLinks } from "./frontend.js";

// Of middle lightness: legible on the dark and on the light palette, and apart from those of the host's own types.
colourLinks({
  REALISR_VLM: "#d98a3d",
  REALISR_TILE_GRID: "#3fa7a0",
  REALISR_DIPTYCH: "#b06fc4",
  REALISR_MM_CONTROLNET: "#5aa35a",
  REALISR_AR_RESTORER: "#7d86d8",
  REALISR_TOKEN_GRID: "#c7637a",
  REALISR_AGENT_LOOP: "#b39a3c",
});
