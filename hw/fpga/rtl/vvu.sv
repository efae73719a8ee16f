// Vector-vector unit of depthwise convolutions: a beat is TAPS window elements of each of PE channels (element 0 of all
// channels in the low bits); SF beats make PE accumulators. Weights: CF * SF words in the same order, channel folds outermost.
module dp_vvu #(
  parameter int PE = 1, TAPS = 1, SF = 9, CF = 1,
  parameter int WB = 4, AB = 8, ACC = 16,
  parameter bit A_SIGNED = 0,
  parameter bit DSP = 0,
  parameter FILE = "weights.mem",    // words of TAPS * PE weights, tap 0 PE 0 in the low bits
  parameter STYLE = "auto",          // where they stand: see dp_rom
  parameter PLANES = 64'h0
) (
  input  logic clk, rst,
  input  logic [TAPS*PE*AB-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [PE*ACC-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int DEPTH = CF * SF;
  localparam int AW = DEPTH > 1 ? $clog2(DEPTH) : 1;
  localparam int FW = SF > 1 ? $clog2(SF) : 1;

  wire en = !m_valid || m_ready;
  assign s_ready = en;
  wire go = en && s_valid;
  logic [AW-1:0] at;
  logic [FW-1:0] fold;
  wire last = fold == FW'(SF-1);
  logic [TAPS*PE*WB-1:0] w;
  dp_rom #(.DEPTH(DEPTH), .WIDTH(TAPS*PE*WB), .FILE(FILE), .STYLE(STYLE), .PLANES(PLANES)) weights (.clk, .en, .at, .q(w));
  logic [TAPS*PE*AB-1:0] a;
  logic v1, f1, l1, v2, f2, l2, v3, f3, l3;
  always_ff @(posedge clk) begin
    if (en) begin
      a <= s_data;
      f1 <= fold == '0; l1 <= last;
      f2 <= f1; l2 <= l1; f3 <= f2; l3 <= l2;
    end
    if (rst) begin
      at <= '0; fold <= '0; v1 <= 1'b0; v2 <= 1'b0; v3 <= 1'b0;
    end else if (en) begin
      v1 <= go; v2 <= v1; v3 <= v2;
      if (go) begin
        fold <= last ? '0 : fold + 1'b1;
        at <= at == AW'(DEPTH-1) ? '0 : at + 1'b1;
      end
    end
  end

  localparam int SUM = WB + AB + $clog2(TAPS + 1);
  logic signed [SUM-1:0] sum [PE];
  for (genvar p = 0; p < PE; p++) begin : g_pe
    logic [TAPS-1:0][WB+AB-1:0] product;
    for (genvar t = 0; t < TAPS; t++) begin : g_tap
      dp_multiply #(.A(WB), .B(AB), .P(WB+AB), .B_SIGNED(A_SIGNED), .DSP(DSP)) multiply (.clk, .en, .a($signed(w[(t*PE+p)*WB +: WB])), .b(a[(t*PE+p)*AB +: AB]), .p(product[t]));
    end
    wire signed [SUM-1:0] total;
    dp_sum #(.N(TAPS), .IN(WB+AB), .OUT(SUM), .CHAIN(DSP)) tree (.x(product), .y(total));
    always_ff @(posedge clk) if (en) sum[p] <= total;
  end
  dp_accumulate #(.PE(PE), .IN(SUM), .ACC(ACC)) accumulate (
    .clk, .rst, .en, .valid(v3), .first(f3), .last(l3), .sum, .m_data, .m_valid
  );
endmodule
