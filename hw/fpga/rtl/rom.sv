// Read-only memory with a registered output. STYLE: "block" RAM, "auto" as the tool likes, or "lut": look-up tables of 64 bits
// each, instantiated for AMD parts (DP_LUT6), since Yosys spends a cell on every 14 bits of a ROM that it maps to logic itself.
// PLANES holds the content for that form, bit by bit: bit b of words 64 g to 64 g + 63 is PLANES[(b * GROUPS + g) * 64 +: 64].
module dp_rom #(
  parameter int DEPTH = 16, WIDTH = 8,
  parameter FILE = "rom.mem",        // DEPTH words in hexadecimal
  parameter STYLE = "auto",
  parameter int GROUPS = (DEPTH + 63) / 64,
  parameter PLANES = 64'h0,
  parameter int AW = DEPTH > 1 ? $clog2(DEPTH) : 1
) (
  input  logic clk, en,
  input  logic [AW-1:0] at,
  output logic [WIDTH-1:0] q
);
`ifdef DP_LUT6
  localparam bit LUT6S = STYLE == "lut";
`else
  localparam bit LUT6S = 0;
`endif
  if (LUT6S) begin : g_lut
    localparam int PAIRS = (GROUPS + 1) / 2, FOURS = (PAIRS + 1) / 2;
    wire [5:0] low = 6'(at);
    wire [AW:0] high = (AW+1)'(at) >> 6;
    for (genvar b = 0; b < WIDTH; b++) begin : g_bit
      wire [2*PAIRS-1:0] one;
      wire [2*FOURS-1:0] two;
      wire [FOURS-1:0] four;
      if (2*PAIRS > GROUPS) assign one[2*PAIRS-1] = 1'b0;
      if (2*FOURS > PAIRS) assign two[2*FOURS-1] = 1'b0;
      for (genvar g = 0; g < GROUPS; g++) begin : g_group
        localparam logic [63:0] BITS = PLANES[(b*GROUPS+g)*64 +: 64];
        if (BITS == '0) assign one[g] = 1'b0;
        else begin : g_table
          LUT6 #(.INIT(BITS)) lut (.O(one[g]), .I0(low[0]), .I1(low[1]), .I2(low[2]), .I3(low[3]), .I4(low[4]), .I5(low[5]));
        end
      end
      for (genvar g = 0; g < PAIRS; g++) begin : g_pair
        if (2*g+1 < GROUPS) begin : g_two
          MUXF7 mux (.O(two[g]), .I0(one[2*g]), .I1(one[2*g+1]), .S(high[0]));
        end else assign two[g] = one[2*g];
      end
      for (genvar g = 0; g < FOURS; g++) begin : g_four
        if (2*g+1 < PAIRS) begin : g_two
          MUXF8 mux (.O(four[g]), .I0(two[2*g]), .I1(two[2*g+1]), .S(high[1]));
        end else assign four[g] = two[2*g];
      end
      if (FOURS == 1) begin : g_only
        always_ff @(posedge clk) if (en) q[b] <= four[0];
      end else begin : g_select
        always_ff @(posedge clk) if (en) q[b] <= four[high[AW:2]];
      end
    end
  end else begin : g_memory
    localparam MADE = STYLE == "lut" ? "distributed" : STYLE;
    (* ram_style = MADE, rom_style = MADE *) logic [WIDTH-1:0] mem [DEPTH];
    initial $readmemh(FILE, mem);
    always_ff @(posedge clk) if (en) q <= mem[at];
  end
endmodule
`ifdef DP_LUT6
(* blackbox *) module LUT6 #(parameter logic [63:0] INIT = '0) (output logic O, input logic I0, I1, I2, I3, I4, I5); endmodule
(* blackbox *) module MUXF7 (output logic O, input logic I0, I1, S); endmodule
(* blackbox *) module MUXF8 (output logic O, input logic I0, I1, S); endmodule
`endif
