// FINN's thresholding core (finn-rtllib/thresholding/hdl/thresholding.sv) as a block of ours: constant thresholds from
// files PATHthreshs_<pe>_<stage>.dat, result sized to OB bits.
module dp_thresholds #(
  parameter int K = 16, N = 15, C = 8, PE = 1,
  parameter bit SIGNED = 1,
  parameter int BIAS = 0,
  parameter int OB = 4,
  parameter PATH = ""
) (
  input  logic clk, rst,
  input  logic [PE*K-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [PE*OB-1:0] m_data, output logic m_valid, input logic m_ready
);
  // as wide as the core reckons with its unsigned N, which is too wide where every result is negative
  localparam int unsigned LEVELS = N;
  localparam int FOUND = BIAS >= 0 ? $clog2(LEVELS+BIAS+1) : 1 + $clog2(-BIAS >= LEVELS+BIAS+1 ? -BIAS : LEVELS+BIAS+1);
  logic [PE-1:0][FOUND-1:0] found;
  thresholding #(.K(K), .N(N), .C(C), .PE(PE), .SIGNED(SIGNED), .BIAS(BIAS), .THRESHOLDS_PATH(PATH), .USE_CONFIG(0)) core (
    .clk, .rst,
    .cfg_en(1'b0), .cfg_we(1'b0), .cfg_a('0), .cfg_d('0), .cfg_rack(), .cfg_q(),
    .irdy(s_ready), .ivld(s_valid), .iset('0), .idat(s_data),
    .ordy(m_ready), .ovld(m_valid), .odat(found)
  );
  for (genvar p = 0; p < PE; p++) begin : g
    if (OB <= FOUND) assign m_data[p*OB +: OB] = found[p][OB-1:0];
    else assign m_data[p*OB +: OB] = {{(OB-FOUND){BIAS < 0 && found[p][FOUND-1]}}, found[p]};
  end
endmodule
