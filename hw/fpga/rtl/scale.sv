// Requantization of N_IN streams: clip((sum_i x_i * multiplier_i[c] + offset[c]) >> SHIFT). One input: scale and clip; more:
// a requantized addition. Constants: one word per channel fold from a file, or one word for all channels (CF = 1).
// A word holds, for every PE from the low bits on, the multipliers (M bits each), then the offset (B bits).
module dp_scale #(
  parameter int N_IN = 1,
  parameter int PE = 1, CF = 1,
  parameter int IB = 16,             // bits of an input element
  parameter bit I_SIGNED = 1,
  parameter int M = 16, B = 32, SHIFT = 8,
  parameter int OB = 8,              // bits of a result
  parameter longint LOW = 0, HIGH = 255,
  parameter bit SHARED = 0,          // one word of one PE's constants serves all
  parameter logic [N_IN*M+B-1:0] CONSTANT = '0,
  parameter FILE = "constants.mem",
  parameter STYLE = "auto",          // where the words stand: see dp_rom
  parameter PLANES = 64'h0,
  parameter bit DSP = 1
) (
  input  logic clk, rst,
  input  logic [N_IN*PE*IB-1:0] s_data, input logic [N_IN-1:0] s_valid, output logic [N_IN-1:0] s_ready,
  output logic [PE*OB-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int WORD = N_IN*M + B;
  localparam int FW = CF > 1 ? $clog2(CF) : 1;
  localparam int PW = IB + M;
  localparam int SW = (B > PW ? B : PW) + $clog2(N_IN + 1) + 1;
  wire en = !m_valid || m_ready;
  wire go = en && &s_valid;
  assign s_ready = {N_IN{go}};
  logic v1, v2, v3;
  logic [PE*WORD-1:0] k1;
  logic [N_IN*PE*IB-1:0] x1;
  if (SHARED) begin : g_shared
    assign k1 = {PE{CONSTANT}};
  end else begin : g_rom
    logic [FW-1:0] at;
    dp_rom #(.DEPTH(CF), .WIDTH(PE*WORD), .FILE(FILE), .STYLE(STYLE), .PLANES(PLANES)) constants (.clk, .en, .at, .q(k1));
    always_ff @(posedge clk) begin
      if (rst) at <= '0;
      else if (go) at <= at == FW'(CF-1) ? '0 : at + 1'b1;
    end
  end
  always_ff @(posedge clk) begin
    if (en) x1 <= s_data;
    if (rst) begin
      v1 <= 1'b0; v2 <= 1'b0; v3 <= 1'b0; m_valid <= 1'b0;
    end else if (en) begin
      v1 <= go; v2 <= v1; v3 <= v2; m_valid <= v3;
    end
  end
  for (genvar p = 0; p < PE; p++) begin : g
    logic signed [PW-1:0] product [N_IN];
    for (genvar i = 0; i < N_IN; i++) begin : g_in
      dp_multiply #(.A(M), .B(IB), .P(PW), .B_SIGNED(I_SIGNED), .DSP(DSP)) multiply (.clk, .en, .a($signed(k1[p*WORD+i*M +: M])), .b(x1[(i*PE+p)*IB +: IB]), .p(product[i]));
    end
    logic signed [B-1:0] offset;
    logic signed [SW-1:0] total, shifted;
    logic signed [SW-1:0] sum;
    always_comb begin
      total = SW'(offset);
      for (int i = 0; i < N_IN; i++) total += SW'(product[i]);
    end
    assign shifted = sum >>> SHIFT;
    always_ff @(posedge clk) if (en) begin
      offset <= $signed(k1[p*WORD+N_IN*M +: B]);
      sum <= total;
      m_data[p*OB +: OB] <= shifted < SW'(LOW) ? OB'(LOW) : shifted > SW'(HIGH) ? OB'(HIGH) : shifted[OB-1:0];
    end
  end
endmodule
