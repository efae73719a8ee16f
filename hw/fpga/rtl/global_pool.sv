// Maximum or sum over all PIXELS of an image, channel folds in sequence.
module dp_global_pool #(
  parameter int PE = 1, CF = 1, PIXELS = 16,
  parameter int IB = 8, OB = 12,
  parameter bit SIGNED = 0,
  parameter bit SUM = 1
) (
  input  logic clk, rst,
  input  logic [PE*IB-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [PE*OB-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int CW = CF > 1 ? $clog2(CF) : 1;
  localparam int NW = PIXELS > 1 ? $clog2(PIXELS) : 1;
  logic [CW-1:0] c;
  logic [NW-1:0] pixel;
  logic [PE*OB-1:0] mem [CF];
  wire last = pixel == NW'(PIXELS-1), last_c = c == CW'(CF-1);
  assign s_ready = !last || !m_valid || m_ready;
  wire go = s_valid && s_ready;
  wire [PE*OB-1:0] old = mem[c];
  logic [PE*OB-1:0] next;
  for (genvar p = 0; p < PE; p++) begin : g
    wire signed [OB:0] x = {{(OB+1-IB){SIGNED && s_data[p*IB+IB-1]}}, s_data[p*IB +: IB]};
    wire signed [OB:0] b = {SIGNED && old[p*OB+OB-1], old[p*OB +: OB]};
    if (SUM) assign next[p*OB +: OB] = pixel == '0 ? x[OB-1:0] : OB'(x + b);
    else assign next[p*OB +: OB] = pixel == '0 || x > b ? x[OB-1:0] : b[OB-1:0];
  end
  always_ff @(posedge clk) begin
    if (go) mem[c] <= next;
    if (go && last) m_data <= next;
    if (rst) begin
      c <= '0; pixel <= '0; m_valid <= 1'b0;
    end else begin
      if (go) begin
        c <= last_c ? '0 : c + 1'b1;
        if (last_c) pixel <= last ? '0 : pixel + 1'b1;
      end
      if (go && last) m_valid <= 1'b1;
      else if (m_ready) m_valid <= 1'b0;
    end
  end
endmodule
